"""Sentences end where they end, in ten languages and one more, and hold the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.language.segmentation import sentences
from support_rag.types import Span
from tests.timing import grows_linearly

# " | " parts sentences that a space joins, "‖" those that nothing joins

GOLD = {
    "English": r"""
        The desk opens at 9 a.m. | It closes at 5 p.m. Pacific time on Fridays.
        Room No. 7 is on Floor B. | The key hangs there.
        Use a modern browser, e.g. Firefox, Chrome etc. | Older ones fail.
        Mr. X and Mrs. O'Neil signed it. | Dr. J. R. R. Hall did not.
        See v2.3.1 at https://docs.example.com/setup.html?x=1.5. | It costs $5.22 per month.
        Acme Inc. Customer Service answers within 2 hrs. on weekdays. | We mean it.
        Wait... | Did it beep? | Good!
        "Is it on?" she asked. | "Yes." | Then press Start.
        He wrote “Stop.” | (It was late.) | Nobody read it.
        Shipping to the U.S. takes 5 days. | In the U.K. it takes 3.
        We ship to the U.S. | Ask us for more.
        Pick option A. | Then pick option B. | Vitamin C. is not one.
        The meeting is on Jan. 5 at 3 p.m. | Bring Fig. 2 and pp. 4 and 5.
        Steps: 1. Open the lid. | 2. Press Reset. | 3. Close it.
        The app runs on Android. | iOS follows in May. | Yahoo! is not supported.
        Write to help@example.org. | You get an answer in 3.5 hours on average.
        As Art. 5 and Sec. 12 say, you may cancel. | i.e. you get your money back.
        Refunds take 10 to 14 days. | Why so long? | Banks need time, cf. Sec. 3.2 of the terms.
        Our office is at 12 St. James Ave. near the park. | Ring twice.
        It weighs approx. 5 kg incl. packaging. | That is fine, i.e. no surcharge applies.
        She paid $1.5 million vs. $2 million last year. | Prof. Lee agreed.
        Set TLS to 1.3. | Version 2.0. is no longer supported.
        Open file.txt. | Copy lines 3-5. | Save as report.final.pdf.
        Did you see the error "Disk full."? | Delete some files!
        Call ext. 4 at 8 a.m. EST. | Nobody picks up before that.
        The firm (Smith & Co. Ltd.) moved. | They are in Washington, D.C. | It is far.
        This is final. [2] | No returns. | (See also Chap. 4.)
        First line wraps here and goes on until it ends. | Next one starts right away.
        Please press 5. | Then hold the line. | Ref. no. 331 applies.
        George W. Bush visited on Sept. 11. | Everyone came.
        Do not unplug it!! | Really?! | Yes.
        It was the best plan ... or was it? | We shall see.
        """,
    "German": r"""
        Die Rückgabe ist bis zum 3. Oktober möglich. | Danach nicht mehr.
        Gemäß Abs. 4 der Bedingungen trägt der Kunde die Kosten. | Das gilt auch nach Art. 5 Satz 2.
        Nehmen Sie z. B. Bargeld, Karten usw. | Schecks nehmen wir nicht.
        Das Büro liegt im 2. Stock, Zi. Nr. 14. | Klingeln Sie bitte.
        Hr. Dr. Meier hilft Ihnen, d. h. Sie rufen ihn an. | Tel. 030 12345 ist besetzt.
        Am 24. und 31. Dezember ist geschlossen. | Ab dem 2. 1. 2025 sind wir wieder da.
        Der Preis beträgt ca. 5,50 Euro inkl. MwSt. | Versand kostet extra.
        „Geht das?“, fragte er. | „Ja.“ | Dann ging er.
        Im 21. Jahrhundert gilt das nicht mehr. | Die 1. Mahnung ist frei.
        Die Frist endet nach 14 Tagen. | Wir melden uns bzgl. Ihrer Anfrage.
        Der Vertrag läuft bis 31.12.2025. | Eine Verlängerung ist möglich, vgl. Ziff. 7.
        Wir haben am 1. Mai und am 3. Okt. geschlossen. | Frohe Feiertage!
        Bitte senden Sie den Antrag an Fr. Schulz, Hauptstr. 5, 10115 Berlin. | Sie antwortet bald.
        Jeder 2. Kunde zahlt mit Karte. | Bar geht auch, ggf. mit Wechselgeld.
        Das kostet max. 3 Mio. Euro. | Mehr nicht. | Ist das klar?
        Zum 15. des Monats wird abgebucht. | Der Betrag steht auf S. 3.
        Es gilt § 312 Abs. 2 Nr. 3 BGB. | Der Widerruf ist formlos.
        Das Gerät lief 3 Std. und 5 Min. | Dann ging es aus.
        Die Fa. Müller GmbH u. Co. KG liefert sog. Ersatzteile. | Diese sind neu.
        """,
    "Spanish": r"""
        El Sr. Pérez vive en la Avda. Libertad. | La Dra. Gómez no.
        ¿Cómo cambio mi contraseña? | ¡Es fácil! | Pulse en «Ajustes».
        Abrimos a las 9 a. m. y cerramos a las 5 p. m. todos los días. | Venga pronto.
        Véase el art. 5 y la pág. 12. | Cuesta 3.50 euros aprox. al mes.
        Ud. puede usar p. ej. Firefox o Chrome. | También otros navegadores.
        Envíos a EE. UU. y México, etc. | El núm. 7 es gratis.
        Los pedidos llegan en 3.5 días. | ¿Y si no llegan? | Llame al tel. 900 123.
        La Srta. Ruiz atiende en la C. Mayor, núm. 3. | Abre a las 10 a.m. de lunes a viernes.
        Dijo: «Ya está». | Luego salió. | ¡Qué rápido!
        El plan cuesta 10 €/mes (IVA incl.). | El cap. 4 lo explica.
        Consulte al Lic. Torres o al Ing. Vega. | Ellos saben.
        Se aceptan Visa, Mastercard, etc. | El efectivo no.
        """,
    "French": r"""
        M. Dupont et Mme Martin sont là. | Le Dr. Petit arrive.
        Voir art. 5 et p. 12. | Cela coûte env. 5,50 euros par mois.
        Pourquoi ? | Parce que c'est gratuit ! | Cliquez sur « Valider. » | Puis attendez.
        Utilisez p. ex. Firefox, c.-à-d. un navigateur moderne. | Les autres échouent.
        Le no. 7 est à gauche. | La fig. 3 le montre.
        Il a dit « Oui. » | Elle a dit non.
        Le délai est de 14 jours. | L'abonnement s'arrête ensuite.
        Appelez le 01 23 45 67 89. | Ou écrivez à aide@exemple.fr.
        Mme. Roy, av. Foch, vous répond. | Elle est là de 9 h. à 17 h. tous les jours.
        « Est-ce possible ? » demanda-t-il. | Oui. | Bien sûr !
        Le chap. 3, al. 2, le précise. | Ce n'est pas gratuit.
        La version 3.1.4 est sortie. | Téléchargez-la sur https://exemple.fr/v3.1.4.
        """,
    "Portuguese": r"""
        O Sr. Silva mora na Av. Paulista. | A Sra. Costa não.
        Veja o art. 5 e a pág. 12. | Custa R$ 3.50 por mês.
        Como altero a senha? | É fácil! | Clique em Ajustes.
        Use p. ex. o Firefox etc. | Outros navegadores não servem.
        O Prof. Dr. Souza atende às 9 h. | Você deve ligar antes.
        O prazo é de 7 dias. | E depois? | Ligue para o tel. 0800 123.
        A Dra. Lima e o Eng. Reis respondem. | Eles atendem das 8 h. às 18 h. todos os dias.
        Consulte a pág. 3, cap. 2. | O valor é 1.500,00 reais.
        Ele disse “Não.” | Ela disse sim. | Que bom!
        V. Exa. pode cancelar. | O Exmo. Sr. Diretor confirma.
        """,
    "Indonesian": r"""
        Bpk. Budi tinggal di Jl. Sudirman No. 7. | Ibu Sari tidak.
        Gunakan peramban modern, mis. Firefox, Chrome, dll. | Yang lama tidak bisa.
        Bagaimana cara mengganti sandi? | Klik Pengaturan. | Selesai!
        Biayanya Rp 3.500 per bulan. | Lihat hlm. 12 dan Gbr. 3.
        PT. Maju Jaya buka pukul 09.00 s.d. 17.00. | Anda bisa datang kapan saja.
        Pembayaran diproses dalam 3 hari kerja. | Apakah bisa lebih cepat? | Ya, bisa.
        Hubungi Sdr. Andi di tlp. 021 555. | Dia ada pukul 8.30 pagi.
        Lihat Ps. 5 ayat 2. | Itu berlaku untuk semua.
        Dr. Sari dan Ir. Joko hadir. | Mereka datang pada tgl. 5 Mei.
        Versi 2.3.1 sudah tersedia. | Unduh di https://contoh.id/unduh.
        """,
    "Russian": r"""
        Офис находится на ул. Ленина, д. 5. | Вход со двора.
        В 2023 г. компания выросла. | Это было в 2023 г. | Затем она закрылась.
        Возьмите паспорт, карту и т. д. | Остальное не нужно.
        Цена 3,5 тыс. руб. за год. | См. рис. 2 и стр. 12.
        А. С. Пушкин родился в Москве. | Как изменить пароль? | Нажмите «Сброс».
        Это т. е. возможно только до 5 ч. вечера. | Приходите раньше!
        Срок возврата — 14 дней. | А если позже? | Тогда нет!
        Г-н И. И. Иванов живёт в г. Москве, кв. 7. | Звоните по тел. 8-800.
        Стоимость 5 млн. рублей, т. е. дорого. | Напр. скидки нет.
        Согласно п. 3 и ст. 12 договора. | Гл. 4 это объясняет.
        Он сказал: «Да». | Она ушла. | Версия 2.3.1 вышла в 2024 г.
        Принимаем карты, наличные и др. | Чеки не принимаем.
        """,
    "Arabic": r"""
        كيف أغير كلمة المرور؟ | اضغط على الإعدادات. | ثم انتظر!
        السعر 3.5 دولار في الشهر. | الشحن مجاني.
        يفتح المكتب الساعة 9. | هل تحتاج إلى مساعدة؟ | اتصل بنا.
        مدة الإرجاع 14 يوما. | ماذا لو تأخرت؟ | لا تقلق!
        د. أحمد يجيب على الأسئلة. | الإصدار 2.3.1 متاح الآن.
        قال: «نعم.» | ثم خرج. | لماذا؟
        """,
    "Chinese": r"""
        打卡机离线工作。‖它保存72小时！‖真的吗？
        价格是3.5元。‖请访问https://example.com/a.html查看。‖“可以。”‖然后按开始。
        怎么修改密码?‖点击设置!‖版本2.3.1已发布。
        （详见第3章。）‖下一步请看说明书……
        退款需要14天。‖为什么这么久？‖银行需要时间……请等待。
        他说：“好的。”‖然后挂了电话！
        版本号为v2.3.1，价格￥9.90。‖客服时间9:00-18:00；周末休息。
        真的吗？！‖是的。‖请看（图3）。
        """,
    "Japanese": r"""
        打刻機はオフラインで動きます。‖72時間保存します！‖本当ですか？
        「はい。」と答えました。‖次に進みます。
        価格は3.5ドルです。‖バージョン2.3.1をお使いください。
        パスワードを変更するには？‖設定を開きます（右上にあります。）。
        返金には14日かかります。‖なぜですか？‖銀行の処理のためです。
        「設定」を開いてください。‖「保存しますか？」と表示されます。‖はいを押します！
        Ver. 2.3.1では直りました。‖詳細はhttps://example.jp/をご覧ください。
        株式会社サンプル（東京都）です。‖お電話は03-1234-5678まで。
        """,
    "Hindi": r"""
        पासवर्ड कैसे बदलें? | सेटिंग्स खोलें। | फिर सहेजें।
        वापसी में 14 दिन लगते हैं। | क्यों? | बैंक को समय चाहिए।
        """,
}
KNOWN_MISSES = 3  # "option B. Vitamin C." could be a name, "PT. Maju" no capital word that is none


def texts(text: str) -> list[str]:
    return [span.of(text) for span in sentences(text, Span(0, len(text)))]


def joined(line: str) -> tuple[str, list[str]]:
    "Return a text and its sentences."
    between = "" if "‖" in line else " "
    parts = [part.strip() for part in line.split("‖" if "‖" in line else " | ")]
    return between.join(parts), parts


def test_sentences_of_ten_languages_end_where_they_end() -> None:
    lines = [joined(line.strip()) for found in GOLD.values() for line in found.strip().splitlines()]
    assert sum(len(parts) for _, parts in lines) >= 300
    wrong = [(texts(text), parts) for text, parts in lines if texts(text) != parts]
    assert len(wrong) <= KNOWN_MISSES, wrong


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Open it. Then wait! Why? Done…", 4),
        ("See v2.3.1 at https://a.io/x.html?b=1. It costs 0.75 €.", 2),
        ("E.g. this, i.e. that, Dr. Ito and Fig. 3 by J. Doe vs. no. 5 of 3 Jan. 2026.", 1),
        ("Is it on? No. Try again.", 3),
        ("1. Hold it.\n2. Wait.", 2),
        ("a. Hold it.\nb. Wait.\nIV. Listen.", 3),
        ("It said “stop.” Then (it went on.) And on.", 3),
        ("打卡机离线工作。它保存72小时！真的吗？", 3),
        ("one line\nand the next\n\nanother paragraph", 2),
        ("To pack:\n- a lamp\n- a rope\n* a knife", 4),
        ("lower case follows. it goes on. Why? it stops.", 3),
        ("It weighs 10 oz. at most, e.g.\n\n## Next", 2),
        ("MEASURE THE SRA. Additionally, wait.", 2),
        ("The glucose fell by 1 mmol/L. Thus we stopped.", 2),
    ],
)
def test_sentences(text: str, n: int) -> None:
    assert len(texts(text)) == n


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        st.text(max_size=120),
        st.lists(
            st.sampled_from([*"aB1.!?。。」)»\n-* “[", "z. B. ", "p.m. ", "3. ", "[1]", " No. "]),
            max_size=40,
        ).map("".join),
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_sentences_hold_the_whole_span_in_order(text: str, before: int, behind: int) -> None:
    span = Span(min(before, len(text)), max(min(before, len(text)), len(text) - behind))
    found = sentences(text, span)
    edges = [Span(span.start, span.start), *found, Span(span.end, span.end)]
    assert not any(text[a.end : b.start].strip() for a, b in pairwise(edges))
    assert all(a.end <= b.start for a, b in pairwise(edges))
    assert all(s.of(text) == s.of(text).strip() != "" for s in found)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        ".",
        ". ",
        "a. ",
        "。",
        "」",
        '."',
        ".[1]",
        "\n",
        "\n ",
        "\n- ",
        "1. ",
        "z. B. ",
        "a.b.",
        "? ",
    ],
)
def test_hostile_text_is_cut_in_linear_time(unit: str) -> None:
    grows_linearly(lambda n: texts(unit * (n // len(unit))), 40_000)
